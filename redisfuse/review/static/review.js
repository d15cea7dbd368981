// Keys, the basket without a reload, a plan that follows the server, and the progress of a rollback. The pages work
// without this file, too.

const live = document.getElementById("live");
const dialog = document.getElementById("keys");

function announce(text) {
  live.textContent = text;
}

// -- the basket -------------------------------------------------------------------------------------------------------

async function toggle(form) {
  const button = form.querySelector("button");
  const adding = button.name === "add";
  const body = new URLSearchParams({ csrf: form.elements.csrf.value, [button.name]: button.value });
  try {
    const reply = await fetch(form.action, { method: "POST", body });
    if (!reply.ok) throw new Error();
  } catch {
    announce("The basket was not changed: reload the page.");
    return;
  }
  button.name = adding ? "remove" : "add";
  button.textContent = (adding ? "✓" : "+") + button.dataset.text;
  button.setAttribute("aria-pressed", String(adding));
  const count = document.getElementById("basket-count");
  count.textContent = String(Number(count.textContent) + (adding ? 1 : -1));
  announce(`${button.value} is ${adding ? "in the basket" : "out of the basket"}.`);
}

document.addEventListener("submit", (event) => {
  if (event.target.matches("form.pick")) {
    event.preventDefault();
    toggle(event.target);
  } else if (event.target.method === "post") {
    // Once is enough. The button is still part of what is sent now.
    setTimeout(() => event.target.querySelectorAll("button").forEach((button) => (button.disabled = true)));
  }
});

// A page that the browser kept, and shows again after "back", is out of date.
window.addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload();
});

// -- keys -------------------------------------------------------------------------------------------------------------

function currentRow() {
  return document.activeElement.closest(".row");
}

function move(step) {
  const rows = [...document.querySelectorAll(".row")];
  const index = rows.indexOf(currentRow());
  const row = rows[index < 0 ? (step > 0 ? 0 : rows.length - 1) : index + step];
  row?.querySelector("a.path").focus();
  row?.scrollIntoView({ block: "nearest" });
}

function pick() {
  const form = (currentRow() ?? document.querySelector("main")).querySelector("form.pick");
  if (form) toggle(form);
}

function search() {
  const field = document.getElementById("select");
  if (field) field.focus();
  else document.querySelector("nav a").click();
}

const keys = { j: () => move(1), k: () => move(-1), x: pick, "/": search, "?": () => dialog.showModal() };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || dialog.open) return;
  if (event.target.matches("input:not([type=checkbox]), textarea, select")) return;
  const action = keys[event.key];
  if (action) {
    event.preventDefault();
    action();
  }
});

const opener = document.getElementById("keys-open");
opener.hidden = false;
opener.addEventListener("click", () => dialog.showModal());
document.getElementById("keys-close").addEventListener("click", () => dialog.close());

// -- the plan ---------------------------------------------------------------------------------------------------------

const plan = document.getElementById("plan");

async function follow() {
  if (document.visibilityState !== "visible" || plan.contains(document.activeElement)) return;
  const reply = await fetch(plan.dataset.source);
  if (!reply.ok) throw new Error();
  const fresh = new DOMParser().parseFromString(await reply.text(), "text/html").body;
  if (fresh.innerHTML.trim() === plan.innerHTML.trim()) return;
  plan.replaceChildren(...fresh.childNodes);
  announce("The plan has changed.");
}

async function keepFollowing() {
  try {
    const started = performance.now();
    await follow();
    // A plan of many keys is read less often: it costs the server at most a tenth of the time.
    setTimeout(keepFollowing, Math.max(1000 * Number(plan.dataset.seconds), 9 * (performance.now() - started)));
  } catch {
    announce("The plan is not followed any more: reload the page.");
  }
}

if (plan) setTimeout(keepFollowing, 1000 * Number(plan.dataset.seconds));

// -- the progress of a rollback ---------------------------------------------------------------------------------------

const PROGRESS_MS = 500;
const progress = document.getElementById("progress");

async function showProgress() {
  const bar = document.getElementById("progress-bar");
  let state;
  try {
    const reply = await fetch(progress.dataset.source);
    if (!reply.ok) throw new Error();
    state = await reply.json();
  } catch {
    document.getElementById("progress-lost").hidden = false;
    announce("The server of these pages has ended.");
    return;
  }
  if (!state.running) {
    location.reload(); // the same address has the report now
    return;
  }
  document.getElementById("progress-text").textContent = state.text;
  if (state.total) {
    bar.max = state.total;
    bar.value = state.done;
  } else bar.removeAttribute("value");
  setTimeout(showProgress, PROGRESS_MS);
}

if (progress) setTimeout(showProgress, PROGRESS_MS);
