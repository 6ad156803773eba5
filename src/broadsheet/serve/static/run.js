// A run as it goes on: its part of the screen is sent whole whenever it changes. Hidden tabs do not listen.
"use strict";
(() => {
  const region = document.getElementById("live");
  const said = document.getElementById("said");
  let source = null;
  let last = "";

  const stop = () => {
    if (source) source.close();
    source = null;
  };
  const listen = () => {
    if (source || document.hidden) return;
    const address = new URL(region.dataset.live, location.href);
    if (last) address.searchParams.set("after", last);
    source = new EventSource(address);
    source.addEventListener("run", (event) => {
      const { html, ended } = JSON.parse(event.data);
      const focused = region.contains(document.activeElement);
      region.innerHTML = html;
      if (focused) region.querySelector("[tabindex]")?.focus();
      last = event.lastEventId;
      if (ended) {
        stop();
        said.textContent = region.querySelector(".state")?.textContent ?? "It has ended";
        location.reload(); // for what can be done now
      }
    });
  };
  document.addEventListener("visibilitychange", () => (document.hidden ? stop() : listen()));
  addEventListener("pagehide", stop);
  listen();
})();
