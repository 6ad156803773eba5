// Filters the table of all papers by what its cells say. Without this script the table is whole, and stays so.
(() => {
  const table = document.querySelector(".papers table");
  if (!table) return;
  const heads = [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim());
  const said = (row, name) => row.cells[heads.indexOf(name)].textContent.trim();
  const rows = [...table.tBodies[0].rows].map((row) => ({
    row,
    words: row.textContent.toLowerCase(),
    stage: said(row, "stage"),
    kind: said(row, "kind"),
    rung: said(row, "rung").replace(/\s+/g, " "),
    claims: said(row, "claims"),
  }));
  const form = document.createElement("form");
  form.className = "filter";
  form.setAttribute("role", "search");
  const field = (label, control) => {
    const around = document.createElement("label");
    around.append(label, control);
    form.append(around);
    return control;
  };
  const words = field("words", document.createElement("input"));
  words.type = "search";
  words.placeholder = "e.g. rerank, training-free, GEM";
  const choices = Object.fromEntries(
    ["stage", "kind", "rung", "claims"].map((name) => {
      const select = document.createElement("select");
      const values = [...new Set(rows.map((each) => each[name]))];
      if (name !== "stage") values.sort();
      select.append(new Option("any", ""));
      for (const value of values) {
        const label = name === "rung" ? `${value} or more` : value === "—" ? "none measured" : value;
        select.append(new Option(label, value));
      }
      return [name, field(name, select)];
    }),
  );
  const count = document.createElement("output");
  form.append(count);

  const fits = (each) =>
    words.value.toLowerCase().split(/\s+/).every((word) => each.words.includes(word)) &&
    Object.entries(choices).every(
      ([name, { value }]) => !value || (name === "rung" ? each.rung >= value : each[name] === value),
    );
  const show = () => {
    let shown = 0;
    for (const each of rows) {
      each.row.hidden = !fits(each);
      shown += !each.row.hidden;
    }
    count.textContent = shown === rows.length ? `all ${shown} papers` : `${shown} of ${rows.length} papers`;
  };

  // papers.html?words=training-free&stage=embed
  const asked = new URLSearchParams(location.search);
  words.value = asked.get("words") ?? "";
  for (const [name, select] of Object.entries(choices)) {
    const value = asked.get(name);
    if (value && [...select.options].some((option) => option.value === value)) select.value = value;
  }
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  document.querySelector(".papers").prepend(form);
  show();
})();
