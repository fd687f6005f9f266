// Tags to choose from below a field in which tags are typed: the folder's own with their counts, then those that the tagger knows.
"use strict";

(function (tuner) {
    const { h } = tuner;
    const WAIT = 60, FEW = 12; // ms after the last key; tags that are shown
    const data = tuner.data = tuner.data || {};
    let count = 0;

    // The field with its list below it; `many`: the field takes several tags, with commas between them.
    data.suggesting = function (input, many = true) {
        const list = h("ul", { class: "tuner-d-suggested", id: `tuner-d-suggested-${++count}`, role: "listbox", "aria-label": tuner.t("Suggestions"), hidden: true });
        let at = -1, asked = 0, timer = null; // at: the one that is marked
        for (const [name, value] of Object.entries({ role: "combobox", autocomplete: "off", "aria-autocomplete": "list", "aria-controls": list.id, "aria-expanded": "false" })) input.setAttribute(name, value);

        // Where the tag in which the cursor is begins and ends.
        function place() {
            const text = input.value, cursor = input.selectionEnd ?? text.length, end = many ? text.indexOf(",", cursor) : -1;
            return { start: many ? text.lastIndexOf(",", cursor - 1) + 1 : 0, end: end < 0 ? text.length : end };
        }

        const word = () => { const { start, end } = place(); return input.value.slice(start, end).trim(); };
        const options = () => [...list.children];

        function close() {
            clearTimeout(timer);
            asked++;
            show([]);
        }

        function show(tags) {
            at = -1;
            list.replaceChildren(...tags.map(([tag, n], i) => h("li", { id: `${list.id}-${i}`, role: "option", "aria-selected": "false", "data-tag": tag, onmousedown: (event) => event.preventDefault(), onclick: () => pick(tag) },
                h("span", {}, tag), h("small", {}, n === null ? tuner.t("tagger's list") : String(n)))));
            list.hidden = !tags.length;
            input.setAttribute("aria-expanded", String(tags.length > 0));
            input.removeAttribute("aria-activedescendant");
        }

        function mark(by) {
            const all = options();
            at = (at + by + all.length + 1) % (all.length + 1); // one place more: none of them
            if (at === all.length) at = -1;
            all.forEach((option, i) => option.setAttribute("aria-selected", String(i === at)));
            if (at < 0) { input.removeAttribute("aria-activedescendant"); return; }
            input.setAttribute("aria-activedescendant", all[at].id);
            all[at].scrollIntoView({ block: "nearest" });
        }

        function pick(tag) {
            const { start, end } = place(), before = input.value.slice(0, start) + (start ? " " : "") + tag;
            input.value = before + input.value.slice(end);
            input.setSelectionRange(before.length, before.length);
            input.dispatchEvent(new Event("input", { bubbles: true }));
            close();
        }

        async function ask() {
            const mine = ++asked, typed = word();
            if (!typed || !data.folder) { show([]); return; }
            const found = await data.get(`suggest?like=${encodeURIComponent(typed)}&limit=${FEW}`).catch(() => ({ tags: [] })); // a help that fails is no reason to say anything
            if (mine !== asked || document.activeElement !== input || word() !== typed) return;
            show(found.tags.filter(([tag]) => tag !== typed));
        }

        // Before what the field itself does with Enter, and what is around it with Escape.
        function keys(event) {
            if (list.hidden || tuner.composing(event)) return;
            const act = { ArrowDown: () => mark(1), ArrowUp: () => mark(-1), Escape: close, ...(at < 0 ? {} : { Enter: () => pick(options()[at].dataset.tag), Tab: () => pick(options()[at].dataset.tag) }) }[event.key];
            if (act) {
                event.preventDefault();
                event.stopImmediatePropagation();
                act();
            } else if (event.key === "Enter") close();
        }

        input.addEventListener("keydown", keys, true);
        input.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(ask, WAIT); });
        input.addEventListener("blur", close);
        return h("div", { class: "tuner-d-suggesting" }, input, list);
    };
})(window.tuner);
