"use strict";
(() => {
  const root = document.documentElement;
  const main = document.getElementById("main");
  const badge = document.getElementById("live");
  let figures = JSON.parse(document.getElementById("figures").textContent);
  const chosen = new Map(); // figure → index of the view that is shown
  // dragging zooms, a double click shows everything again: no bar of buttons over the marks
  const quick = { responsive: false, displayModeBar: false };

  // ---- colours: a figure names variables of the style; an element turns them into what they are now
  const probe = document.createElement("i");
  probe.hidden = true;
  document.body.append(probe);
  const resolve = (name) => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  };
  const paint = (value, key = "") => {
    if (typeof value === "string") {
      return /color$/.test(key) && value.startsWith("--") ? resolve(value) : value;
    }
    if (Array.isArray(value)) {
      return value.map((part) => paint(part, key));
    }
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, paint(part, name)]));
    }
    return value;
  };

  // ---- figures
  const axis = (given, isNarrow) => ({
    gridcolor: "--grid", linecolor: "--grid", zerolinecolor: "--grid", zeroline: false, automargin: true,
    tickfont: { size: isNarrow ? 10 : 12 }, ...given,
    ...(given.title ? { title: { standoff: 10, font: { size: isNarrow ? 11 : 13 }, ...given.title } } : {}),
  });
  const dress = (view, height, width) => {
    const isNarrow = width < 560;
    const layout = { ...view.layout };
    for (const name of Object.keys(layout)) {
      if (/^[xy]axis/.test(name)) {
        layout[name] = axis(layout[name], isNarrow);
      }
    }
    return {
      width, height: isNarrow ? Math.max(360, height - 40) : height,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", uirevision: view.label,
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: "--ink" },
      margin: { l: isNarrow ? 44 : 64, r: 12, t: 16, b: 48 }, hovermode: "closest", dragmode: isNarrow ? false : "zoom",
      hoverlabel: { align: "left", bgcolor: "--surface", bordercolor: "--muted", font: { size: 12, color: "--ink" } },
      ...layout,
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom",
        font: { size: isNarrow ? 11 : 12 }, ...(layout.legend ?? {}) },
    };
  };
  const draw = (node, paper = 0) => {
    const figure = figures[node.dataset.figure];
    if (!figure) {
      return;
    }
    const view = figure.views[Math.min(chosen.get(node.dataset.figure) ?? 0, figure.views.length - 1)];
    const width = paper || Math.floor(node.parentElement.clientWidth);
    Plotly.react(node, paint(view.data), paint(dress(view, figure.height, width)), quick);
  };
  const drawAll = (paper = 0) => document.querySelectorAll(".plot").forEach((node) => draw(node, paper));

  // ---- choosing a view, and light or dark
  const mark = () => document.querySelectorAll(".views").forEach((group) => {
    const shown = chosen.get(group.dataset.for) ?? 0;
    group.querySelectorAll("button").forEach((button) =>
      button.setAttribute("aria-pressed", String(Number(button.dataset.view) === shown)));
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest(".views button");
    if (!button) {
      return;
    }
    const id = button.parentElement.dataset.for;
    chosen.set(id, Number(button.dataset.view));
    mark();
    draw(document.getElementById(`plot-${id}`));
  });
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const toggle = document.getElementById("theme");
  const name = () => { toggle.querySelector("span").textContent = isDark() ? "light" : "dark"; };
  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    name();
    drawAll();
  });
  dark.addEventListener("change", () => { name(); drawAll(); });

  // ---- sizes, and paper
  let asked = 0;
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) {
      return; // the bars of a phone come and go while it scrolls
    }
    width = innerWidth;
    cancelAnimationFrame(asked);
    asked = requestAnimationFrame(() => drawAll());
  });
  const PAPER = 690; // pixels between the margins of an upright A4 or Letter
  let before;
  addEventListener("beforeprint", () => { before = root.dataset.theme; root.dataset.theme = "light"; drawAll(PAPER); });
  addEventListener("afterprint", () => {
    if (before) {
      root.dataset.theme = before;
    } else {
      delete root.dataset.theme;
    }
    drawAll();
  });
  name();
  drawAll();

  // ---- live: only what changed is put in place, so that scrolling, zooms and open tables stay
  if (!badge) {
    return;
  }
  const pace = { preparing: 1500, searching: 1500, finishing: 1500, ended: 10000, stopped: 2000 };
  let tag = "";
  const replaceParts = (html) => {
    const fresh = new DOMParser().parseFromString(`<main>${html}</main>`, "text/html").querySelector("main");
    for (const details of fresh.querySelectorAll("details[id]")) {
      details.open = document.getElementById(details.id)?.open ?? false;
    }
    for (const plot of fresh.querySelectorAll(".plot")) {
      const drawn = document.getElementById(plot.id);
      if (drawn) {
        drawn.setAttribute("aria-label", plot.getAttribute("aria-label"));
        plot.replaceWith(drawn);
      }
    }
    main.replaceChildren(...fresh.childNodes);
    mark();
    drawAll();
  };
  const say = (text, look) => { badge.textContent = text; badge.className = look; };
  const poll = async () => {
    let wait = 1500;
    try {
      const answer = await fetch("state.json", { headers: tag ? { "If-None-Match": tag } : {}, cache: "no-store" });
      if (answer.status === 200) {
        const state = await answer.json();
        tag = answer.headers.get("ETag") ?? "";
        document.title = state.title;
        document.body.dataset.stage = state.stage;
        if (state.error) {
          say(state.error, "lost");
        } else {
          figures = state.figures;
          replaceParts(state.html);
          say({ ended: "search has ended", stopped: "search has stopped" }[state.stage] ?? "live",
            ["ended", "stopped"].includes(state.stage) ? "ended" : "");
        }
      }
      wait = pace[document.body.dataset.stage] ?? 1500;
    } catch {
      say("trimtab watch is gone", "lost");
      wait = 3000;
    }
    setTimeout(poll, wait);
  };
  poll();
})();
