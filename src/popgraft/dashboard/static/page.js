// Draws the figures of a page, switches its theme and, on a live page, adopts what is new.
"use strict";

const BUTTONS = [["zoom2d", "pan2d"], ["zoomIn2d", "zoomOut2d", "resetScale2d"], ["toImage"]]; // none that sends data away
const CONFIG = { responsive: true, displaylogo: false, plotlyServerURL: "", modeBarButtons: BUTTONS };
const AHEAD = 300; // pixels: what is so near to being in view is drawn
const drawn = new WeakMap(); // for each figure, the JSON that it was drawn from
const coming = new IntersectionObserver(draw, { rootMargin: `${AHEAD}px 0px` });
let printing = false;

/** Draws the figures that are in view, or soon will be, and whose data have changed; zooms stay while the runs do. */
async function draw() {
  for (const plot of document.querySelectorAll(".plot")) {
    coming.observe(plot); // once; later calls do nothing
    const { top, bottom } = plot.getBoundingClientRect();
    if (printing || (bottom > -AHEAD && top < innerHeight + AHEAD)) await drawOne(plot);
  }
}

/** Draws one figure, unless it has been drawn as it is. */
async function drawOne(plot) {
  const json = plot.nextElementSibling.textContent;
  if (drawn.get(plot) === json) return;
  drawn.set(plot, json);
  const { data, layout } = JSON.parse(json);
  try {
    await Plotly.react(plot, data, { ...layout, uirevision: document.title + location.search }, CONFIG);
  } catch (error) {
    plot.textContent = `This figure cannot be drawn: ${error.message}`; // the others can
  }
}

/** Makes a part of the document equal to its new version; what has the focus, or was opened or zoomed, stays so. */
function adopt(old, fresh) {
  if (old.nodeName !== fresh.nodeName || old.id !== fresh.id) return old.replaceWith(fresh);
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) return;
  if (old.classList.contains("plot")) {
    old.style.height = fresh.style.height;
    return;
  }
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  if (old.checked !== undefined) old.checked = fresh.checked;
  const before = [...old.childNodes];
  const after = [...fresh.childNodes];
  after.forEach((node, i) => (i < before.length ? adopt(before[i], node) : old.append(node)));
  for (const node of before.slice(after.length)) node.remove();
}

let wanted = false;
let busy = false;

/** Fetches this page again and adopts it; asked for while it does so, it does it once more. */
async function refresh() {
  wanted = true;
  if (busy || document.hidden) return;
  busy = true;
  while (wanted) {
    wanted = false;
    const runs = location.search;
    const text = await fetch(location.href).then((answer) => answer.ok && answer.text()).catch(() => "");
    if (!text) break; // the server has gone; the stream of changes says so, and asks again when it is back
    if (location.search !== runs) continue; // other runs have been chosen meanwhile
    const fresh = new DOMParser().parseFromString(text, "text/html");
    document.title = fresh.title;
    for (const part of ["h1", "#runs", "#contents", "main"]) {
      adopt(document.querySelector(part), fresh.querySelector(part));
    }
    await draw();
  }
  busy = false;
}

/** Follows the server's stream of changes. */
function listen() {
  const address = new URL(location.href);
  address.searchParams.delete("token"); // the cookie has it now
  history.replaceState(null, "", address);
  const connection = document.getElementById("connection");
  const changes = new EventSource("changes");
  changes.onmessage = refresh;
  document.addEventListener("visibilitychange", () => wanted && refresh());
  changes.onopen = () => {
    connection.textContent = "live";
    connection.className = "";
  };
  changes.onerror = () => {
    connection.textContent = "connection lost, trying again";
    connection.className = "lost";
  };
  document.getElementById("runs").addEventListener("change", (event) => {
    const chosen = [...event.currentTarget.querySelectorAll("input:checked")].map((box) => box.value);
    history.replaceState(null, "", "?" + new URLSearchParams(chosen.map((name) => ["runs", name])));
    refresh();
  });
}

/** The button's theme wins over the system's, and is remembered where the browser allows it. */
function choose(theme) {
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("theme", theme);
  } catch {} // private windows and files may have no storage
}

try {
  const theme = localStorage.getItem("theme");
  if (theme) choose(theme);
} catch {}

document.addEventListener("DOMContentLoaded", async () => {
  document.getElementById("theme").addEventListener("click", () => {
    const theme = document.documentElement.dataset.theme;
    const dark = theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    choose(dark ? "light" : "dark");
  });
  window.addEventListener("beforeprint", () => {
    printing = true;
    draw();
  });
  window.addEventListener("afterprint", () => (printing = false));
  await draw();
  document.documentElement.dataset.drawn = "";
  if ("live" in document.documentElement.dataset) listen();
});
