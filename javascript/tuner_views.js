// What the page shows: training, a data folder, a comparison, or the tools. Each is there all the time; the others are out of sight.
"use strict";

(function (tuner) {
    const { h } = tuner;
    const byId = (id) => document.getElementById(id);
    const KEPT = "tuner-view";
    let restored = false;
    const views = tuner.views = Object.assign(tuner.views || { all: [] }, { open: "train", ready: true }); // all: {name, label(), box: its element's id, opened()}
    const find = (name) => views.all.find((view) => view.name === name);
    const ORDER = ["train", "data", "compare", "tools"];
    const kept = remembered(); // read before a view is shown and kept in its place

    views.all.push({ name: "train", label: () => tuner.t("Training"), box: "tuner-train", opened: () => window.dispatchEvent(new Event("resize")) }); // a chart drawn while it was hidden has no width

    function draw() {
        const list = h("div", { role: "tablist", class: "tuner-tabs", "aria-label": tuner.t("Training, pictures, comparison or tools") });
        list.append(...ORDER.map(find).map((view) => h("button", { type: "button", role: "tab", id: `tuner-view-${view.name}`, "aria-controls": view.box, onclick: () => views.show(view.name) }, view.label())));
        list.addEventListener("keydown", (event) => {
            const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
            if (!step) return;
            views.show(ORDER[(ORDER.indexOf(views.open) + step + ORDER.length) % ORDER.length]);
            byId(`tuner-view-${views.open}`).focus();
        });
        const bar = byId("tuner-switch"), before = bar.querySelector("[role=tablist]"), language = before ? null : tuner.language.choice();
        if (before) before.replaceWith(list); // the choice of the language stays, and with it the focus
        else bar.replaceChildren(list, ...(language ? [language] : []));
    }

    views.show = function (name) {
        views.open = name;
        for (const view of views.all) {
            const chosen = view.name === name, tab = byId(`tuner-view-${view.name}`);
            byId(view.box).classList.toggle("tuner-away", !chosen);
            tab.setAttribute("aria-selected", chosen);
            tab.tabIndex = chosen ? 0 : -1;
        }
        try { localStorage.setItem(KEPT, name); } catch (error) { /* a browser that keeps nothing */ }
        find(name).opened();
    };

    // The view that was open before the page was loaded anew, once everything in it is there.
    views.restore = function () {
        if (restored) return;
        restored = true;
        if (find(kept)) views.show(kept);
    };

    views.mount = function () {
        draw();
        views.show(views.open);
    };

    function remembered() {
        try { return localStorage.getItem(KEPT) || ""; } catch (error) { return ""; }
    }
})(window.tuner);

document.dispatchEvent(new Event("tuner-scripts")); // this is the last of them, by its name
