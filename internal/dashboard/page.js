"use strict";
// The page updates itself: each second it fetches itself, and replaces the parts that have changed.
(() => {
  const second = 1000, timeout = 5000;
  const state = document.getElementById("state");
  let answered = new Date();

  const replaceParts = text => {
    const page = new DOMParser().parseFromString(text, "text/html");
    for (const part of document.querySelectorAll("[data-live]")) {
      const next = page.getElementById(part.id);
      if (next && next.innerHTML !== part.innerHTML) part.replaceChildren(...next.childNodes);
    }
  };

  const update = async () => {
    try {
      const answer = await fetch(location.href, { signal: AbortSignal.timeout(timeout) });
      if (!answer.ok) throw new Error(answer.statusText);
      replaceParts(await answer.text());
      answered = new Date();
      if (state.textContent) state.textContent = "";
    } catch {
      const text = `The server has not answered since ${answered.toLocaleTimeString()}. The page shows the status at that time.`;
      if (state.textContent !== text) state.textContent = text;
    }
    setTimeout(updateWhenVisible, second);
  };

  // updateWhenVisible updates the page as soon as it is visible.
  const updateWhenVisible = () => {
    if (!document.hidden) update();
    else document.addEventListener("visibilitychange", updateWhenVisible, { once: true });
  };
  setTimeout(updateWhenVisible, second);
})();
