// What the other scripts share: the page's parts, our own routes, and the one loop that asks for the status. State lives on the server; this only draws it.
"use strict";

window.tuner = window.tuner || {};

(function (tuner) {
    const BUSY = 1000, IDLE = 3000, HIDDEN = 15000, LOST = 5000; // ms between two status calls; lost: a request while the WebUI starts can kill it
    let timer = null, asking = false, again_ = false, lost = false; // again_: somebody asked while a request was out

    tuner.parts = []; // {mount(root), show(status)}: what other scripts draw into the live root
    tuner.status = null;

    // ---- words ----

    // A sentence in the page's language; {0}, {1} are replaced. The WebUI's table of translations is `window.localization`.
    tuner.t = function (text, ...values) {
        const table = window.localization || {};
        return (table[text] || text).replace(/\{(\d)\}/g, (whole, i) => values[Number(i)] ?? whole);
    };

    // A number with the words for one and for several; further values follow.
    tuner.count = (n, one, several, ...values) => tuner.t(n === 1 ? one : several, n.toLocaleString(tuner.language.locale), ...values);

    tuner.duration = function (seconds) {
        const whole = Math.round(seconds);
        if (whole < 60) return tuner.t("{0} s", whole);
        if (whole < 3600) return tuner.t("{0} min {1} s", Math.floor(whole / 60), String(whole % 60).padStart(2, "0"));
        return tuner.t("{0} h {1} min", Math.floor(whole / 3600), String(Math.floor(whole % 3600 / 60)).padStart(2, "0"));
    };

    tuner.bytes = function (n) {
        if (n < 1e6) return tuner.t("{0} kB", (n / 1e3).toFixed(0));
        return n < 1e9 ? tuner.t("{0} MB", (n / 1e6).toFixed(1)) : tuner.t("{0} GB", (n / 1e9).toFixed(2));
    };

    // A key that belongs to an input method, in which Enter and Escape choose letters; some browsers say so by its code alone.
    tuner.composing = (event) => event.isComposing || event.keyCode === 229;

    tuner.number = (x, digits = 4) => (x === null || x === undefined ? "" : Number(x.toPrecision(digits)).toString());

    // ---- elements ----

    // h("button", {class: "x", onclick: f}, "text", child): text is always set as text, never as HTML.
    tuner.h = function (tag, attributes = {}, ...children) {
        const element = document.createElement(tag);
        for (const [name, value] of Object.entries(attributes)) {
            if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
            else if (value === true) element.setAttribute(name, "");
            else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
        }
        element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
        return element;
    };

    // Text with `code` in it, as parts for an element.
    tuner.marked = (text) => text.split("`").map((part, i) => (i % 2 ? tuner.h("code", {}, part) : part));

    // Sets what has changed alone, so that a selection or a screen reader is not disturbed every second.
    tuner.text = function (element, text) {
        if (element.textContent !== text) element.textContent = text;
    };

    tuner.show = function (element, visible) {
        if (element.hidden === visible) element.hidden = !visible;
    };

    // ---- routes ----

    tuner.url = (path) => `${tuner.root.dataset.api}/${path}`;

    async function call(path, options = {}) {
        const answer = await fetch(tuner.url(path), options);
        const body = await answer.json().catch(() => ({}));
        const detail = Array.isArray(body.detail) ? body.detail.map(({ loc, msg }) => `${(loc || []).slice(1).join(".")}: ${msg}`).join("; ") : body.detail; // a field that is out of its range
        if (answer.status === 401) throw Object.assign(new Error(tuner.t("The program asks for a login again: reload this page.")), { status: 401 });
        if (!answer.ok) throw Object.assign(new Error(tuner.said(body.error || detail) || tuner.t("The program answered with an error ({0}).", answer.status)), { status: answer.status });
        return body;
    }

    tuner.get = (path) => call(path);

    // What is said of a look at the program that failed, and is going to be tried again.
    tuner.unanswered = (error) => (error.status === 401 ? error.message : tuner.t("The program does not answer; trying again…"));

    tuner.send = function (path, body = {}) {
        const headers = { "Content-Type": "application/json", "X-Tuner": tuner.root.dataset.key || "page" };
        return call(path, { method: "POST", headers, body: JSON.stringify(body) });
    };

    // The same for what changes the queue, whose status follows at once.
    tuner.post = async function (path, body = {}) {
        const answer = await tuner.send(path, body);
        tuner.refresh();
        return answer.answer;
    };

    // What a part of the page says in its own line, and what its buttons do: run something, and say the sentence of a refusal there.
    tuner.speaking = function (line) {
        const say = function (text, bad = false) {
            const element = line();
            if (!element) return;
            tuner.text(element, text);
            element.classList.toggle("tuner-bad-text", bad);
            tuner.show(element, Boolean(text));
        };
        const doing = (action) => async (event) => {
            const target = event && event.currentTarget, button = target && target.tagName === "BUTTON" ? target : null; // in a field the last change counts, not the first
            if (button && button.getAttribute("aria-busy") === "true") return;
            if (button) button.setAttribute("aria-busy", "true"); // not disabled: that would take the focus away
            try {
                say("");
                await action(event);
            } catch (error) {
                if (error.message) say(error.message, true); // stopped work says nothing
            } finally {
                if (button) button.removeAttribute("aria-busy");
            }
        };
        return { say, doing };
    };

    Object.assign(tuner, tuner.speaking(() => tuner.message));

    // ---- the loop ----

    tuner.refresh = function () {
        clearTimeout(timer);
        ask();
    };

    async function ask() {
        if (asking) again_ = true;
        if (asking || !tuner.root.isConnected) return;
        [asking, again_] = [true, false];
        const now = tuner.status && tuner.status.now, root = tuner.root;
        let status = null;
        try {
            const known = now ? `?part=${now.part}&points=${tuner.points.length}` : "";
            status = await tuner.get(`status${known}`);
            if (lost) tuner.say("");
            lost = false;
        } catch (error) {
            lost = true;
            tuner.say(tuner.unanswered(error), true);
        }
        asking = false;
        if (status && root === tuner.root && root.isConnected) take(status); // a root drawn anew meanwhile has asked for nothing yet
        if (again_) return void ask();
        if (!root.isConnected) return; // the page is being drawn anew
        clearTimeout(timer);
        timer = setTimeout(ask, document.hidden ? HIDDEN : lost ? LOST : tuner.isGoing() ? BUSY : IDLE);
    }

    tuner.points = [];

    function take(status) {
        const now = status.now, before = tuner.status && tuner.status.now;
        if (!now) tuner.points = [];
        else if (before && before.part === now.part && now.points_from <= tuner.points.length) tuner.points = tuner.points.slice(0, now.points_from).concat(now.points);
        else tuner.points = now.points;
        tuner.status = status;
        draw(status);
    }

    function draw(status) {
        drawHold(status);
        tuner.form.seen(status);
        for (const part of tuner.parts) part.show(status);
        tuner.root.dataset.state = status.now ? status.now.state : "empty";
    }

    // What holds the queue up is told on every tab: a run that does not start is looked for where it was added.
    function drawHold(status) {
        const waiting = status.queue.filter((entry) => entry.state === "waiting").length, text = JSON.stringify([status.held && waiting, status.trouble]);
        if (tuner.hold.dataset.drawn === text) return;
        tuner.hold.dataset.drawn = text;
        tuner.show(tuner.hold, Boolean((status.held && waiting) || status.trouble));
        const start = tuner.h("button", { type: "button", class: "tuner-button tuner-strong", id: "tuner-queue-start", onclick: tuner.doing(() => tuner.post("do/start")) }, tuner.t("Start the queue"));
        tuner.hold.replaceChildren(...(status.held && waiting ? [tuner.h("span", {}, tuner.t("The queue is on hold; runs that wait: {0}.", waiting)), start] : []),
            ...(status.trouble ? [tuner.h("span", { class: "tuner-bad-text" }, tuner.said(status.trouble))] : []));
    }

    // Draws a part anew and puts the focus back where it was: on the element of the same name.
    tuner.keepFocus = function (element, draw) {
        const name = (e) => e.id || e.getAttribute("aria-label") || e.textContent, active = document.activeElement;
        const wanted = element.contains(active) ? name(active) : null;
        draw();
        if (wanted === null) return;
        const found = [...element.querySelectorAll("button, input, a")].find((e) => name(e) === wanted) || element.querySelector("button, input, a");
        if (found) found.focus();
    };

    tuner.isGoing = function () {
        const now = tuner.status && tuner.status.now;
        return Boolean(now) && ["running", "pausing", "stopping"].includes(now.state);
    };

    // ---- tabs of the live part ----

    function tablist(root, panels) {
        const list = tuner.h("div", { role: "tablist", class: "tuner-tabs", "aria-label": tuner.t("Run, queue and history") });
        const tabs = panels.map((panel) => tuner.h("button", {
            type: "button", role: "tab", id: `tuner-tab-${panel.name}`, "aria-controls": `tuner-panel-${panel.name}`, onclick: () => tuner.open(panel.name),
        }, panel.title));
        list.addEventListener("keydown", (event) => {
            const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
            if (!step) return;
            const next = tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length];
            next.click();
            next.focus();
        });
        list.append(...tabs);
        root.append(list, tuner.hold, tuner.message, ...panels.map((panel) => panel.element));
    }

    tuner.open = function (name) {
        for (const part of tuner.parts) {
            const chosen = part.name === name, tab = document.getElementById(`tuner-tab-${part.name}`);
            tab.setAttribute("aria-selected", chosen);
            tab.tabIndex = chosen ? 0 : -1;
            part.element.hidden = !chosen;
            if (chosen && part.opened) part.opened();
        }
    };

    function mount(root) {
        tuner.root = root;
        if (root.dataset.key) document.cookie = `tuner-${location.port}=${root.dataset.key}; path=/; SameSite=Strict`; // pictures are asked for without a header
        tuner.points = [];
        tuner.status = null;
        root.replaceChildren();
        tuner.message = tuner.h("p", { class: "tuner-message", role: "status", hidden: true });
        tuner.hold = tuner.h("div", { class: "tuner-hold", hidden: true });
        for (const part of tuner.parts) {
            part.element = tuner.h("section", { role: "tabpanel", id: `tuner-panel-${part.name}`, "aria-labelledby": `tuner-tab-${part.name}` });
            part.title = tuner.t(part.label);
            part.drawn = null;
            part.mount(part.element);
        }
        tablist(root, tuner.parts);
        tuner.open("run");
        tuner.form.mount();
        tuner.views.mount();
        tuner.tools.mount();
        tuner.data.mount();
        tuner.compare.mount();
        tuner.views.restore();
        tuner.refresh();
    }

    // In another language the live root is drawn anew; what is open stays open, and what was typed stays typed.
    function again() {
        const open = tuner.parts.find((part) => !part.element.hidden), kept = tuner.parts.map((part) => part.kept && part.kept()), { status, points } = tuner;
        mount(tuner.root);
        Object.assign(tuner, { status, points });
        if (status) draw(status);
        tuner.parts.forEach((part, i) => kept[i] && part.restore(kept[i]));
        if (open) tuner.open(open.name);
    }

    const NEEDED = ["tuner-form", "tuner-tools", "tuner-plan", "tuner-everything", "tuner-order-button", "tuner-check-button", "tuner-switch", "tuner-tools-root", "tuner-data-root", "tuner-compare-root"];

    // gradio draws the page bit by bit, when it likes, and the WebUI draws it anew on Reload UI
    function look() {
        const root = document.getElementById("tuner-live");
        if (!root || root === tuner.root || !tuner.form || !tuner.language || !tuner.language.ready || !tuner.tools || !tuner.tools.ready || !tuner.data || !tuner.data.ready || !tuner.compare || !tuner.compare.ready || !tuner.views || !tuner.views.ready || tuner.parts.length !== 3) return;
        if (NEEDED.every((id) => document.getElementById(id))) mount(root);
    }

    new MutationObserver(look).observe(document.documentElement, { childList: true, subtree: true });
    document.addEventListener("DOMContentLoaded", look);
    document.addEventListener("tuner-scripts", look); // gradio may have drawn everything before our scripts are there, and then nothing happens any more
    document.addEventListener("tuner-language", () => (tuner.root && tuner.root.isConnected ? again() : look()));
    document.addEventListener("visibilitychange", () => { if (!document.hidden && tuner.root) tuner.refresh(); });
})(window.tuner);
