// Keeps the part of the page that changes up to date. Without this script the page loads itself again.
"use strict";
const part = document.querySelector("[data-live]");
const pause = document.querySelector("#pause");
if (part && pause) {
  let waiting = null;
  const show = () => {
    // What somebody is reading with the keyboard is not taken away from under them.
    if (waiting === null || pause.getAttribute("aria-pressed") === "true" || part.contains(document.activeElement)) return;
    part.innerHTML = waiting;
    waiting = null;
  };
  const events = new EventSource(part.dataset.live);
  const state = document.querySelector("#live-state");
  events.onopen = () => { state.textContent = "live"; };
  events.onerror = () => { state.textContent = "not connected"; };
  events.onmessage = event => { waiting = event.data; show(); };
  pause.hidden = false;
  pause.addEventListener("click", () => {
    const paused = pause.getAttribute("aria-pressed") !== "true";
    pause.setAttribute("aria-pressed", String(paused));
    show();
  });
  part.addEventListener("focusout", () => setTimeout(show, 0));
  addEventListener("pagehide", () => events.close());
}
