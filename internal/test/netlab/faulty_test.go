package netlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// object returns the object that an honest server has at a path that begins with /o.
func object(path string) []byte { return bytes.Repeat([]byte(path+" "), 1000) }

// honest serves objects, and stores the bodies of PUT requests.
func honest(put *sync.Map) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		switch {
		case r.Method == http.MethodPut:
			put.Store(r.URL.Path, string(body))
		case strings.HasPrefix(r.URL.Path, "/o"):
			w.Header().Set("Content-Type", "application/octet-stream")
			w.Write(object(r.URL.Path))
		default:
			http.NotFound(w, r)
		}
	})
}

func newFaulty(t testing.TB, f Faults) (s *Faulty, url string, put *sync.Map) {
	t.Helper()
	put = new(sync.Map)
	s = NewFaulty(honest(put), f)
	server := httptest.NewServer(s)
	t.Cleanup(func() { s.Close(); server.Close() })
	return s, server.URL, put
}

// outcome returns in a word or two the result that a client sees. It waits longer for an answer than any busy machine
// takes.
func outcome(t testing.TB, method, url, path string) string {
	t.Helper()
	return outcomeWithin(t, time.Minute, method, url, path)
}

// silence is how long a client waits in vain for an answer.
const silence = 3 * time.Second

// outcomeWithin is outcome with a limit for the wait.
func outcomeWithin(t testing.TB, wait time.Duration, method, url, path string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, method, url+path, strings.NewReader(strings.Repeat("x", 1000)))
	if err != nil {
		t.Fatal(err)
	}
	answer, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(q)
	if err != nil {
		return "no answer, " + broken(ctx, err)
	}
	defer answer.Body.Close()
	said := strconv.Itoa(answer.StatusCode)
	after := answer.Header.Get("Retry-After")
	if date, err := http.ParseTime(after); err == nil && time.Until(date) < 4*time.Second {
		after = "a date"
	}
	if after != "" {
		said += " after " + after
	}
	if answer.Header.Get("Content-Type") == "text/html" || method == http.MethodPut || answer.StatusCode >= 300 {
		return said
	}
	body, err := io.ReadAll(answer.Body)
	want := object(path)
	switch {
	case err != nil:
		return said + ", " + broken(ctx, err)
	case bytes.Equal(body, want):
		return said + ", right"
	case len(body) < len(want) && bytes.HasPrefix(want, body):
		return said + ", short"
	case bytes.HasPrefix(body, []byte("/o")):
		return said + ", other " + strconv.Itoa(differing(body, want))
	}
	return fmt.Sprintf("%s, %.5q", said, body)
}

func broken(ctx context.Context, err error) string {
	switch {
	case ctx.Err() != nil:
		return "late"
	case errors.Is(err, syscall.ECONNRESET):
		return "reset"
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "cut"
	}
	return "broken"
}

func differing(a, b []byte) (n int) {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			n++
		}
	}
	return n
}

// TestFaults checks the result of each fault for a client.
func TestFaults(t *testing.T) {
	for kind, want := range map[Fault][]string{
		Honest:        {"200, right"},
		ServerError:   {"500", "502", "503", "504"},
		Burst:         {"503"},
		Throttled:     {"429 after 3"},
		ThrottledDate: {"429 after a date"},
		ResetEarly:    {"no answer, reset", "no answer, broken"},
		ResetMidBody:  {"200, reset", "no answer, reset", "no answer, broken"},
		Truncated:     {"200, cut"},
		LongLength:    {"200, cut"},
		ShortLength:   {"200, short"},
		BadChunked:    {"200, broken"},
		BitFlip:       {"200, other 1"},
		OtherBytes:    {"200, other 1000"}, // another path, 1000 times
		Zeros:         {`200, "\x00\x00\x00\x00\x00"`},
		WebPage:       {`200, "<!DOC"`},
		Disguised:     {`200, "<!DOC"`},
		SlowHeader:    {"no answer, late"},
		SlowBody:      {"200, late"},
		Silent:        {"no answer, late"},
		Denied:        {"403"},
		Missing:       {"404"},
		Stale:         {"200, other 1000"},
	} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			f := Of(1, 1, kind)
			f.RetryAfter = 3 * time.Second
			f.Stale = func(string) string { return "/o0" }
			if kind == OtherBytes {
				f.Only = func(r *http.Request) bool { return r.URL.Path != "/o1" }
			}
			s, url, _ := newFaulty(t, f)
			if kind == OtherBytes {
				outcome(t, http.MethodGet, url, "/o1")
			}
			wait := time.Minute
			if strings.HasSuffix(want[0], "late") {
				wait = silence
			}
			got := outcomeWithin(t, wait, http.MethodGet, url, "/o2")
			if !slices.Contains(want, got) {
				t.Errorf("a client saw %q, want %q", got, want)
			}
			if n := s.Total(); (n == 1) != (kind != Honest) || n > 1 {
				t.Errorf("%d faults were counted", n)
			}
		})
	}
	if n := len(AllFaults()); n != 21 {
		t.Errorf("there are %d faults, and this test knows 21", n)
	}
}

// TestFaultyWrites: which writes are carried out although the answer is lost.
func TestFaultyWrites(t *testing.T) {
	for kind, isWritten := range map[Fault]bool{
		Honest: true, ResetEarly: true, ServerError: false, Throttled: false, Denied: false, ResetMidBody: false, Silent: false,
	} {
		s, url, put := newFaulty(t, Of(1, 1, kind))
		wait := time.Minute
		if kind == Silent {
			wait = silence
		}
		got := outcomeWithin(t, wait, http.MethodPut, url, "/x")
		if _, is := put.Load("/x"); is != isWritten {
			t.Errorf("%v: written = %v, want %v", kind, is, isWritten)
		}
		if (got == "200") != (kind == Honest) || s.Total() != map[bool]int64{true: 0, false: 1}[kind == Honest] {
			t.Errorf("%v: a client saw %q, and %v was counted", kind, got, s.Counts())
		}
	}
}

// TestBursts: a burst affects the next requests, and ends.
func TestBursts(t *testing.T) {
	for _, kind := range []Fault{Burst, Denied} {
		f := Of(1, 1, kind)
		f.Length = 3
		f.Only = func(r *http.Request) bool { return r.URL.Path != "/spared" }
		s, url, _ := newFaulty(t, f)
		outcome(t, http.MethodGet, url, "/o1")
		s.mu.Lock()
		s.faults.Rate = 0
		s.mu.Unlock()
		want := []string{"404", map[Fault]string{Burst: "503", Denied: "403"}[kind], "", "200, right"}
		want[2] = want[1]
		for i, path := range []string{"/spared", "/o2", "/o3", "/o4"} {
			if got := outcome(t, http.MethodGet, url, path); got != want[i] {
				t.Errorf("%v: request %d saw %q, want %q", kind, i, got, want[i])
			}
		}
	}
}

// TestSeed: equal seeds give equal faults in any order of the requests, and different seeds give different faults.
func TestSeed(t *testing.T) {
	run := func(seed uint64, order []int) map[Fault]int64 {
		s, url, _ := newFaulty(t, Of(seed, 0.5, ServerError, Throttled, BitFlip, Truncated, Missing))
		var all sync.WaitGroup
		for _, n := range order {
			all.Go(func() {
				for range 3 {
					outcome(t, http.MethodGet, url, fmt.Sprint("/o", n))
				}
			})
		}
		all.Wait()
		return s.Counts()
	}
	order := make([]int, 40)
	for i := range order {
		order[i] = i
	}
	first := run(1, order)
	slices.Reverse(order)
	if again := run(1, order); !maps.Equal(again, first) {
		t.Errorf("seed 1 gave %v, then %v", first, again)
	}
	if other := run(2, order); maps.Equal(other, first) {
		t.Errorf("seeds 1 and 2 gave the same: %v", other)
	}
	var sum int64
	for kind, n := range first {
		sum += n
		if n < 3 || n > 25 { // 12 each on average
			t.Errorf("%d of 120 requests were %v", n, kind)
		}
	}
	if sum < 40 || sum > 80 {
		t.Errorf("%d of 120 requests failed, want about half", sum)
	}
}

// TestFirst: only an object's first requests fail.
func TestFirst(t *testing.T) {
	f := Of(1, 1, ServerError)
	f.First = 2
	s, url, _ := newFaulty(t, f)
	for range 5 {
		for _, path := range []string{"/o1", "/o2"} {
			outcome(t, http.MethodGet, url, path)
		}
	}
	if got := outcome(t, http.MethodGet, url, "/o1"); got != "200, right" || s.Total() != 4 {
		t.Errorf("the sixth request saw %q, and %d failed, want 4", got, s.Total())
	}
}
