// The keyboard: all that it does, links and forms of the screen do too.
"use strict";
(() => {
  const KEYS = [
    ["j, k", "the next paper, the one before"], ["Enter", "open it"], ["/", "search"],
    ["s", "save for later, or take back"], ["r", "read, or not"], ["n", "write a note"],
    ["t", "try the paper, on its screen"],
    ["[, ]", "the day, week or month before, and after"], ["g d, g w, g m", "the last day, week, month"],
    ["g h", "the front page"], ["?", "show these keys"],
  ];
  const PLACES = { d: "/day", w: "/week", m: "/month", h: "/" };
  const STORED = "broadsheet.keys";
  const dialog = document.getElementById("keys");
  const said = document.getElementById("said");
  const turn = document.getElementById("keys-switch");
  const titles = () => [...document.querySelectorAll("[data-item] a.title")];
  let on = true;
  let waiting = 0; // until when a letter after g counts

  const stored = (value) => {
    try {
      if (value !== undefined) localStorage.setItem(STORED, value);
      return localStorage.getItem(STORED);
    } catch {
      return null; // no storage: as it is by default
    }
  };
  const show = () => {
    turn.textContent = `Keyboard shortcuts: ${on ? "on" : "off"}`;
  };
  const help = () => {
    if (!dialog.firstChild) {
      const title = Object.assign(document.createElement("h2"), { id: "keys-title", textContent: "Keys" });
      const list = Object.assign(document.createElement("dl"), { className: "facts" });
      for (const [key, words] of KEYS) {
        const row = document.createElement("div");
        const term = document.createElement("dt");
        term.append(Object.assign(document.createElement("kbd"), { textContent: key }));
        row.append(term, Object.assign(document.createElement("dd"), { textContent: words }));
        list.append(row);
      }
      const form = Object.assign(document.createElement("form"), { method: "dialog" });
      form.append(Object.assign(document.createElement("button"), { textContent: "Close" }));
      dialog.append(title, list, form);
    }
    dialog.showModal();
  };
  const send = (link, fields) => {
    const form = Object.assign(document.createElement("form"), { method: "post", action: `${link.pathname}/marks` });
    for (const [name, value] of Object.entries(fields)) {
      form.append(Object.assign(document.createElement("input"), { type: "hidden", name, value }));
    }
    document.body.append(form);
    form.submit();
  };
  const here = () => document.activeElement.closest("[data-item]") || document.querySelector("[data-paper]");
  const move = (step) => {
    const all = titles();
    const item = document.activeElement.closest("[data-item]");
    const at = item ? all.indexOf(item.querySelector("a.title")) : -1;
    const next = all[at < 0 ? (step > 0 ? 0 : all.length - 1) : at + step];
    if (next) {
      next.focus();
      next.scrollIntoView({ block: "nearest" });
    } else if (all.length) {
      said.textContent = step > 0 ? "The last paper" : "The first paper";
    }
  };
  const press = (name) => {
    const item = here();
    const button = item && item.querySelector(`.marks button[name="${name}"]`);
    const link = item && item.querySelector("a.title");
    if (button) button.click();
    else if (link && link.pathname.startsWith("/papers/")) send(link, { [name]: item.dataset[name] ? 0 : 1, at: link.id });
    else said.textContent = "Choose a paper first: j";
  };
  const note = () => {
    const field = document.getElementById("note");
    const item = document.activeElement.closest("[data-item]");
    if (field) field.focus();
    else if (item) location.assign(`${item.querySelector("a.title").getAttribute("href")}#note`);
    else said.textContent = "Choose a paper first: j";
  };
  const follow = (chosen, otherwise = "") => {
    const link = document.querySelector(chosen);
    if (link) location.assign(link.href);
    else said.textContent = otherwise;
  };
  const typing = (target) =>
    target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName) || dialog.open;

  document.addEventListener("keydown", (event) => {
    if (!on || event.ctrlKey || event.metaKey || event.altKey || event.isComposing || typing(event.target)) return;
    const key = event.key;
    if (Date.now() < waiting && PLACES[key]) {
      event.preventDefault();
      location.assign(PLACES[key]);
      return;
    }
    waiting = 0;
    const acts = {
      j: () => move(1), k: () => move(-1), s: () => press("later"), r: () => press("read"), n: note,
      "/": () => document.getElementById("q").focus(),
      "[": () => follow("#previous"), "]": () => follow("#next"), "?": help,
      t: () => follow(".try a", "No trial is here"),
      g: () => { waiting = Date.now() + 1500; },
    };
    if (Object.hasOwn(acts, key)) {
      event.preventDefault();
      acts[key]();
    }
  });

  if (turn) {
    on = stored() !== "off";
    show();
    turn.parentElement.hidden = false;
    turn.addEventListener("click", () => {
      on = !on;
      stored(on ? "on" : "off");
      show();
    });
    document.getElementById("keys-help").addEventListener("click", help);
  }
})();
