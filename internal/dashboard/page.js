"use strict";
// The page renews itself: each second it asks for itself, and takes over the parts that have changed.
(() => {
  const second = 1000, patience = 5000;
  const state = document.getElementById("state");
  let answered = new Date();

  const take = text => {
    const page = new DOMParser().parseFromString(text, "text/html");
    for (const part of document.querySelectorAll("[data-live]")) {
      const next = page.getElementById(part.id);
      if (next && next.innerHTML !== part.innerHTML) part.replaceChildren(...next.childNodes);
    }
  };

  const renew = async () => {
    try {
      const answer = await fetch(location.href, { signal: AbortSignal.timeout(patience) });
      if (!answer.ok) throw new Error(answer.statusText);
      take(await answer.text());
      answered = new Date();
      if (state.textContent) state.textContent = "";
    } catch {
      const text = `The server has not answered since ${answered.toLocaleTimeString()}: what is shown is of then.`;
      if (state.textContent !== text) state.textContent = text;
    }
    setTimeout(next, second);
  };

  // next renews the page as soon as somebody can see it.
  const next = () => {
    if (!document.hidden) renew();
    else document.addEventListener("visibilitychange", next, { once: true });
  };
  setTimeout(next, second);
})();
