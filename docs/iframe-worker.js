// Pages that are opened from the disk may start no worker, in which the search would run. Here a hidden frame stands for
// it: the worker's script runs there, and both sides send each other messages as they would otherwise. mkdocs-material's
// `offline` plugin knows a script of this name, and then names none of another host.
(() => {
  if (location.protocol !== "file:") return;
  window.Worker = class extends EventTarget {
    #frame = document.createElement("iframe");
    #ready;

    constructor(url) {
      super();
      this.#frame.hidden = true;
      document.body.append(this.#frame);
      const inside = this.#frame.contentWindow;
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const run = (address) =>
        new Promise((done, failed) => {
          const script = inside.document.createElement("script");
          Object.assign(script, { src: address, onload: done, onerror: failed });
          inside.document.head.append(script);
        });
      const base = new URL(url, location);
      inside.importScripts = async (...addresses) => {
        for (const address of addresses) await run(new URL(address, base));
      };
      this.#ready = run(base);
    }

    postMessage(data) {
      const inside = this.#frame.contentWindow;
      this.#ready.then(() => inside.dispatchEvent(new inside.MessageEvent("message", { data })));
    }

    terminate() {
      this.#frame.remove();
    }
  };
})();
