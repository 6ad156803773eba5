// A run as it goes on: its part of the screen is sent whole whenever it changes. Hidden tabs do not listen, and go on
// from what they have seen. The server holds few streams: where it ends one, the browser asks again by itself.
"use strict";
(() => {
  const PATIENCE = 10_000; // milliseconds without an answer, until it is said, or a refusal is asked about again
  const region = document.getElementById("live");
  const said = document.getElementById("said");
  const lost = document.getElementById("lost");
  let source = null;
  let seen = region.dataset.seen;
  let timer = 0;
  let over = false;

  const told = () => region.querySelector("#state b").textContent;
  const show = (html) => {
    const before = told();
    const made = document.createElement("template");
    made.innerHTML = html;
    [...made.content.children].forEach((part, i) => {
      const old = region.children[i];
      if (old.isEqualNode(part)) return;
      const focused = old.contains(document.activeElement) ? document.activeElement.id : null;
      const places = [...old.querySelectorAll("[tabindex]")].map((each) => [each.id, each.scrollLeft, each.scrollTop]);
      old.replaceWith(part);
      for (const [id, left, top] of places) document.getElementById(id)?.scrollTo(left, top);
      if (focused !== null) (document.getElementById(focused) ?? document.getElementById("state")).focus();
    });
    if (told() === before) return;
    said.textContent = told();
    document.title = document.title.replace(before, told());
  };
  const close = () => {
    clearTimeout(timer);
    timer = 0;
    source?.close();
    source = null;
  };
  const miss = () => {
    lost.hidden = false;
    timer = 0;
    if (source.readyState !== EventSource.CLOSED) return; // it asks again by itself
    close();
    listen();
  };
  const listen = () => {
    if (source || over || document.hidden) return;
    source = new EventSource(`${region.dataset.live}?after=${encodeURIComponent(seen)}`);
    source.addEventListener("open", () => {
      clearTimeout(timer);
      timer = 0;
      lost.hidden = true;
    });
    source.addEventListener("error", () => {
      timer ||= setTimeout(miss, PATIENCE);
    });
    source.addEventListener("run", (event) => {
      const { html, ended } = JSON.parse(event.data);
      seen = event.lastEventId;
      show(html);
      over = ended;
      if (over) close();
    });
  };
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : listen()));
  addEventListener("pagehide", close);
  addEventListener("pageshow", listen);
  listen();
})();
