// The form that gradio draws: essentials or everything, search, marks at the fields, and what the handlers' answers say.
"use strict";

(function (tuner) {
    const { h } = tuner;
    const WAIT = 700, PATIENCE = 20000; // ms after the last key before the form is checked; after which an answer is not waited for any more
    let timer = null, view = "essentials", marked = {}, told = null, checking = 0; // marked, told: what the handlers have answered, as it is shown; checking: when a check was asked for that is not answered yet
    const form = tuner.form = {};
    const byId = (id) => document.getElementById(id);
    const fields = () => byId("tuner-form").querySelectorAll(".tuner-field");

    form.mount = function () {
        const tools = byId("tuner-tools");
        if (tools.dataset.mounted) return; // the live root alone was drawn anew
        tools.dataset.mounted = "true";
        tools.querySelector(".tuner-tools").append(h("p", { id: "tuner-kept", class: "tuner-kept", role: "status", hidden: true }), h("p", { id: "tuner-none", class: "tuner-kept", role: "status", hidden: true }));
        restore();
        if (tuner.language.host) { // it translates what gradio draws and no attributes of HTML
            for (const name of ["placeholder", "aria-label"]) {
                for (const element of tools.querySelectorAll(`[${name}]`)) element.setAttribute(name, tuner.t(element.getAttribute(name)));
            }
        }
        for (const button of tools.querySelectorAll("[data-view]")) button.addEventListener("click", () => show(button.dataset.view));
        tools.querySelector(".tuner-view").addEventListener("keydown", (event) => {
            if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
            show(view === "essentials" ? "everything" : "essentials");
            tools.querySelector(`[data-view=${view}]`).focus();
        });
        tools.querySelector(".tuner-search").addEventListener("input", (event) => search(event.target.value));
        const root = byId("tuner-form");
        root.addEventListener("click", (event) => {
            const fold = event.target.closest(".tuner-fold");
            if (fold) unfold(fold, fold.getAttribute("aria-expanded") !== "true");
            if (event.target.closest("#tuner-plan-button")) wait(tuner.t("Looking at the pictures…"));
            if (event.target.closest("#tuner-train-button")) wait(tuner.t("Looking at the settings…"));
        });
        root.addEventListener("click", (event) => { // of a double click the second one would be a second run
            if (event.detail > 1 && event.target.closest("#tuner-train-button")) { event.stopPropagation(); event.preventDefault(); }
        }, true);
        root.addEventListener("input", (event) => { if (event.target.closest(".tuner-field")) check(); });
        root.addEventListener("focusout", (event) => { if (event.target.closest(".tuner-field")) check(); });
        show("essentials");
    };

    function wait(text) {
        told = null;
        byId("tuner-plan").replaceChildren(h("p", { class: "tuner-wait" }, text));
    }

    // ---- what is shown ----

    function show(name) {
        view = name;
        byId("tuner-form").classList.toggle("tuner-all", name === "everything");
        for (const button of byId("tuner-tools").querySelectorAll("[data-view]")) {
            const chosen = button.dataset.view === name;
            button.setAttribute("aria-checked", chosen);
            button.tabIndex = chosen ? 0 : -1;
        }
    }

    function unfold(fold, open) {
        fold.setAttribute("aria-expanded", open);
        byId(fold.getAttribute("aria-controls")).classList.toggle("tuner-open", open);
    }

    function search(text) {
        const words = text.toLowerCase().split(/\s+/).filter(Boolean), root = byId("tuner-form");
        root.classList.toggle("tuner-searching", words.length > 0);
        for (const field of fields()) {
            const said = `${field.textContent} ${tuner.language.english(field)} ${field.id.replace("tuner-f-", "").replaceAll("_", " ")}`.toLowerCase();
            field.classList.toggle("tuner-missed", !words.every((word) => said.includes(word)));
        }
        for (const fold of root.querySelectorAll(".tuner-fold")) {
            const section = byId(fold.getAttribute("aria-controls")), any = section.querySelector(".tuner-field:not(.tuner-missed)");
            fold.classList.toggle("tuner-missed", words.length > 0 && !any);
        }
        const found = [...fields()].some((field) => !field.classList.contains("tuner-missed") && field.offsetParent); // those of other methods are there, out of sight
        tuner.text(byId("tuner-none"), tuner.t("No setting fits."));
        tuner.show(byId("tuner-none"), words.length > 0 && !found);
    }

    // ---- what the handlers answer ----

    function check() {
        clearTimeout(timer);
        timer = setTimeout(() => {
            if (Date.now() - checking < PATIENCE) return check(); // the WebUI's gradio drops an event that comes while the same one is answered
            checking = Date.now();
            byId("tuner-check-button").click();
        }, WAIT);
    }

    // Asks a handler for something that is not a button of gradio's: {set: {key: value}} or {run: id}.
    form.order = function (order) {
        const field = byId("tuner-order").querySelector("textarea, input");
        const kind = field.tagName === "TEXTAREA" ? HTMLTextAreaElement : HTMLInputElement;
        Object.getOwnPropertyDescriptor(kind.prototype, "value").set.call(field, JSON.stringify({ ...order, at: Date.now() }));
        field.dispatchEvent(new Event("input", { bubbles: true }));
        setTimeout(() => byId("tuner-order-button").click(), 50); // gradio takes the value over in the next turn of its loop
    };

    tuner.reply = function (text) {
        checking = 0;
        const reply = JSON.parse(text || "{}");
        draw(reply);
        if (reply.added) {
            tuner.open("run");
            tuner.refresh();
            if (tuner.root.getBoundingClientRect().top > window.innerHeight) tuner.root.scrollIntoView({ block: "start" }); // on a phone it is below the form
        }
        if (reply.recheck && form.replan) byId("tuner-plan-button").click();
        else if (reply.recheck) check();
        if (reply.recheck) form.replan = false;
        if (reply.restored) { waiting = false; drawKept(true); }
        if (reply.form) keep(reply.form);
    };

    // ---- the form over a reload: the browser keeps what is not as the program fills it in, and the server puts it back ----

    const KEPT = "tuner-form", AGAIN = 3000, TRIES = 20; // ms between two orders: gradio may draw before it listens
    let waiting = false; // what was kept is not in the form yet, so the form is nothing to keep

    function restore(tries = TRIES) {
        let kept = {};
        try { kept = JSON.parse(localStorage.getItem(KEPT)) || {}; } catch (error) { /* a browser that keeps nothing, or other words */ }
        waiting = tries > 0 && Object.keys(kept).length > 0;
        if (!waiting) return;
        form.order({ kept });
        setTimeout(() => {
            if (!waiting) return;
            // The current gradio's browser side forgets an event that it sent while its stream of answers was being closed, until one of another kind opens the next.
            byId("tuner-check-button").click();
            restore(tries - 1);
        }, AGAIN);
    }

    function keep(values) {
        if (waiting) return;
        try { localStorage.setItem(KEPT, JSON.stringify(values)); } catch (error) { /* as above */ }
    }

    function drawKept(visible) {
        const afresh = () => { drawKept(false); form.order({ afresh: true }); tell({ said: tuner.t("The form is as it was at first.") }); }; // an answer may be overtaken by that of a check
        byId("tuner-kept").replaceChildren(h("span", {}, tuner.t("The form is as you left it.")), " ", h("button", { type: "button", class: "tuner-link", onclick: afresh }, tuner.t("Start afresh")));
        tuner.show(byId("tuner-kept"), visible);
    }

    function draw(reply) {
        marked = reply.problems || {};
        mark(marked);
        if (reply.plan || reply.general || reply.problems || reply.said || reply.added) tell(reply);
    }

    function tell(reply) {
        told = reply;
        byId("tuner-plan").replaceChildren(...(reply.plan ? planOf(reply.plan) : saidOf(reply)));
    }

    // The run that was added has ended: it is in the queue no more.
    form.seen = function ({ queue }) {
        const entry = told && told.added && queue.find(({ id }) => id === told.added);
        if (!entry || ["waiting", "running", "pausing", "stopping"].includes(entry.state)) return;
        told = null;
        byId("tuner-plan").replaceChildren();
    };

    document.addEventListener("tuner-language", () => {
        if (byId("tuner-kept")) drawKept(!byId("tuner-kept").hidden);
        if (byId("tuner-none")) tuner.text(byId("tuner-none"), tuner.t("No setting fits."));
        if (Object.keys(marked).length) mark(marked);
        if (told) tell(told);
    });

    form.askToDrop = function () {
        const name = byId("tuner-own").querySelector("input").value;
        if (!name || window.confirm(tuner.t("Delete the preset {0}? It cannot be brought back.", name))) byId("tuner-drop-button").click();
    };

    function mark(problems) {
        for (const field of fields()) {
            const text = tuner.saidOfSettings(problems[field.id], field.id), input = field.querySelector("input, textarea, select");
            let error = byId(`${field.id}-error`);
            if ((error ? error.textContent : "") === text || !input) continue; // said already: it is not read out again at each key
            field.classList.toggle("tuner-bad", Boolean(text));
            if (error) error.remove();
            if (text) {
                field.append(h("p", { class: "tuner-error", id: `${field.id}-error`, role: "alert" }, text));
                input.setAttribute("aria-invalid", "true");
                input.setAttribute("aria-describedby", `${field.id}-error`);
            } else {
                input.removeAttribute("aria-invalid");
                input.removeAttribute("aria-describedby");
            }
        }
        for (const fold of byId("tuner-form").querySelectorAll(".tuner-fold")) {
            fold.classList.toggle("tuner-bad-text", Boolean(byId(fold.getAttribute("aria-controls")).querySelector(".tuner-bad")));
        }
        const hidden = byId("tuner-everything").querySelector(".tuner-bad");
        byId("tuner-tools").querySelector("[data-view=everything]").classList.toggle("tuner-bad-text", Boolean(hidden));
    }

    function saidOf(reply) {
        const problems = Object.entries(reply.problems || {}), lines = [];
        if (problems.length) lines.push(h("p", { class: "tuner-bad-text" }, tuner.t("Something has to be put right first:"),
            h("ul", {}, problems.map(([id, text]) => h("li", {}, h("button", { type: "button", class: "tuner-link", onclick: () => goTo(id) }, labelOf(id)), ` ${tuner.saidOfSettings(text, id)}`)))));
        for (const text of reply.general || []) lines.push(h("p", { class: "tuner-bad-text" }, tuner.saidOfSettings(text)));
        if (reply.said) lines.push(h("p", {}, tuner.said(reply.said)));
        if (reply.added) lines.push(h("p", {}, tuner.t("The run is in the queue.")));
        return lines;
    }

    function labelOf(id) {
        const field = byId(id), label = field && (field.querySelector("label span") || field.querySelector("span, label"));
        return label ? label.textContent.trim() : id.replace("tuner-f-", "");
    }

    function goTo(id) {
        const field = byId(id), section = field.closest(".tuner-section");
        if (section || field.closest("#tuner-everything")) show("everything");
        if (section) unfold(document.querySelector(`[aria-controls="${section.id}"]`), true);
        field.scrollIntoView({ block: "center" });
        const input = field.querySelector("input, textarea, select");
        if (input) input.focus();
    }

    function planOf(plan) {
        const fix = (warning) => warning.fix && h("button", { type: "button", class: "tuner-button", onclick: () => mend(warning.fix) }, tuner.said(warning.fix.label));
        return [
            h("h3", {}, tuner.t("What this run will do")),
            h("ul", { class: "tuner-lines" }, plan.lines.map((line) => h("li", {}, tuner.said(line)))),
            plan.warnings.length ? h("ul", { class: "tuner-warnings" }, plan.warnings.map((warning) => h("li", {}, h("span", {}, tuner.saidOfSettings(warning.text)), fix(warning)))) : null,
            plan.problems.length ? h("details", {}, h("summary", {}, tuner.t("Notes on single pictures ({0})", plan.problems.length)),
                h("ul", {}, plan.problems.map((problem) => h("li", {}, tuner.said(problem))))) : null,
        ].filter(Boolean);
    }

    function mend(fix) {
        form.order({ set: fix.values });
        form.replan = true;
    }
})(window.tuner);
