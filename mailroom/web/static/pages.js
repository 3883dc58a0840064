// Conveniences that the pages also work without: refresh, times in the reader's time zone, copying, confirmations.
"use strict";

(() => {
  const POLL_MS = 3000, QUIET_MS = 1000, AGE_MS = 20000, AGAIN_MS = 60000;
  const { stream, pulse } = document.body.dataset;
  const live = document.getElementById("live-state");
  let known = pulse, source = null, timer = 0, quiet = false, missed = false, polling = 0;

  const say = (words) => { if (live && live.textContent !== words) live.textContent = words; };

  function changed() {
    if (document.hidden || quiet) { missed = true; return; }
    quiet = true;
    setTimeout(() => { quiet = false; if (missed) { missed = false; changed(); } }, QUIET_MS);
    document.body.dispatchEvent(new CustomEvent("changed"));
  }

  function poll() {
    if (!polling) polling = setInterval(changed, POLL_MS);
    say(`Refreshes every ${POLL_MS / 1000} seconds.`);
  }

  function listen() {
    if (source || document.hidden) return;
    source = new EventSource(stream);
    source.onopen = () => { clearInterval(polling); polling = 0; say("Updates live."); };
    source.onmessage = (event) => { if (event.data !== known) { known = event.data; changed(); } };
    source.onerror = () => {
      poll();
      if (source.readyState === EventSource.CLOSED) { leave(); timer = setTimeout(listen, AGAIN_MS); }
    };
  }

  // Browsers open only six connections to a site, so a hidden tab keeps none.
  function leave() { clearTimeout(timer); if (source) source.close(); source = null; }

  if (stream) {
    listen();
    setInterval(changed, AGE_MS);
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) { leave(); clearInterval(polling); polling = 0; } else { missed = false; changed(); listen(); }
    });
  }

  // A refresh that fails leaves the page as it is; one redirected to the sign-in page goes there.
  document.body.addEventListener("htmx:before:response", (event) => {
    const { raw, status } = event.detail.ctx.response;
    if (raw.redirected) { location.reload(); event.preventDefault(); }
    else if (status >= 400 && status !== 422) event.preventDefault();
  });
  // "Show as code" needs only the names of files, not their content.
  document.body.addEventListener("htmx:config:request", (event) => {
    const body = event.detail.ctx.request.body;
    if (!(body instanceof FormData)) return;
    const names = body.getAll("attachments").map((file) => file instanceof File ? file.name : file).filter(Boolean);
    if (body.has("attachments")) { body.delete("attachments"); names.forEach((name) => body.append("attachments", name)); }
  });

  function here(root) {
    for (const time of root.querySelectorAll("time.clock")) {
      const at = new Date(time.dateTime);
      time.textContent = `${at.toLocaleDateString("sv")} ${at.toLocaleTimeString("sv")}`;
    }
    for (const text of root.querySelectorAll("text.clock")) {
      text.textContent = new Date(1000 * text.dataset.at).toLocaleTimeString("sv", { hour: "2-digit", minute: "2-digit" });
    }
    if (navigator.clipboard) for (const button of root.querySelectorAll("[data-copy]")) button.hidden = false;
  }
  here(document);
  document.addEventListener("htmx:after:swap", () => here(document));

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  document.addEventListener("submit", (event) => {
    const words = event.target.dataset.confirm;
    if (words && !confirm(words)) event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target.closest("input, textarea, select")) return;
    const search = document.querySelector("[data-slash]");
    if (search) { search.focus(); event.preventDefault(); }
  });

  const preview = document.querySelector("[data-live-submit]");
  if (preview) {
    let typed = 0;
    // In a new frame each time, as the first page of a frame adds no entry to the browser's history.
    const show = () => {
      const old = document.querySelector(`iframe[name="${preview.formTarget}"]`);
      const frame = old.cloneNode();
      frame.removeAttribute("srcdoc");
      old.replaceWith(frame);
      preview.form.requestSubmit(preview);
    };
    preview.form.addEventListener("input", () => { clearTimeout(typed); typed = setTimeout(show, 400); });
    show();
  }
})();
