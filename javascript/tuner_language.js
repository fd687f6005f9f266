// The page's language. In the WebUI its own setting decides, and it translates by itself what gradio draws; our own page does both here.
"use strict";

(function (tuner) {
    const WEBUI = window.localization !== undefined;
    const STATIC = new URL(".", (document.currentScript && document.currentScript.src) || new URL("tuner/static/x", location.href));
    const NAMES = { en: "English", zh_CN: "中文" }, TAGS = { en: "en", zh_CN: "zh-CN" }, KEPT = "tuner-language", PATIENCE = 10000; // ms
    const language = tuner.language = { host: WEBUI, ready: WEBUI, now: "", locale: [], choice: () => null, english: (element) => element.textContent };
    if (WEBUI) return;

    // ---- which ----

    function wanted() {
        let kept = null;
        try { kept = localStorage.getItem(KEPT); } catch (error) { /* a browser that keeps nothing */ }
        return kept in NAMES ? kept : navigator.language.startsWith("zh") ? "zh_CN" : "en";
    }

    // Loads the table; where there is none, or none comes, the page stays English. Nothing is shown before, so that no page is half in one language.
    async function use(name) {
        const answer = name === "en" ? null : await fetch(new URL(`${name}.json`, STATIC), { signal: AbortSignal.timeout(PATIENCE) }).catch(() => null);
        const table = answer && answer.ok ? await answer.json().catch(() => null) : null;
        window.localization = table || {};
        language.now = table ? name : "en";
        language.locale = language.now === "en" && navigator.language.startsWith("en") ? [] : TAGS[language.now];
        language.ready = true;
        document.documentElement.lang = TAGS[language.now];
        translate(document.body);
        for (const draw of choices) draw();
        document.documentElement.classList.remove("tuner-wordless");
        document.dispatchEvent(new Event("tuner-language"));
    }

    const choices = [];

    // The choice of the language, for a row of the page.
    language.choice = function () {
        const box = tuner.h("div", { role: "radiogroup", class: "tuner-view tuner-language" });
        const buttons = Object.entries(NAMES).map(([name, label]) => (
            tuner.h("button", { type: "button", role: "radio", "data-language": name, lang: TAGS[name], onclick: () => choose(name) }, label)));
        box.addEventListener("keydown", (event) => {
            if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
            const other = buttons.find((button) => button.dataset.language !== language.now);
            choose(other.dataset.language);
            other.focus();
        });
        box.append(...buttons);
        choices.push(() => {
            box.setAttribute("aria-label", tuner.t("Language"));
            for (const button of buttons) {
                button.setAttribute("aria-checked", button.dataset.language === language.now);
                button.tabIndex = button.dataset.language === language.now ? 0 : -1;
            }
        });
        choices[choices.length - 1]();
        return box;
    };

    function choose(name) {
        try { localStorage.setItem(KEPT, name); } catch (error) { /* as above */ }
        if (name !== language.now) use(name);
    }

    // ---- what gradio draws ----

    const ATTRIBUTES = ["placeholder", "title", "aria-label"];
    const SKIPPED = "#tuner-live, #tuner-plan, #tuner-switch, #tuner-tools-root, #tuner-data-root, #tuner-compare-root, .tuner-error, .tuner-language, #tuner-past ul, #tuner-own ul, script, style"; // in the language already, or named by a person
    const CHOICES = "#tuner-form input[autocomplete=off]", TYPED = "#tuner-past, #tuner-own";
    // gradio's own words, which follow the browser's language
    const GRADIO = { "将文件拖放到此处": "Drop File Here", "拖放文件至此处": "Drop File Here", "点击上传": "Click to Upload", "- 或 -": "- or -", "或": "or" };
    const texts = new WeakMap(), attributes = new WeakMap(), inputs = new WeakMap(); // {english, shown} of what has been translated

    function translated(text) {
        const core = text.trim(), table = window.localization || {};
        return core && Object.hasOwn(table, core) ? text.replace(core, () => table[core]) : text;
    }

    // {english, shown} of a text that stands in the page now: somebody may have written anew since it was translated.
    function known(kept, now) {
        const english = kept && kept.shown === now ? kept.english : now.replace(now.trim(), (core) => GRADIO[core] || core);
        return { english, shown: translated(english) };
    }

    function translateText(node) {
        const { english, shown } = known(texts.get(node), node.data);
        texts.set(node, { english, shown });
        if (node.data !== shown) node.data = shown;
    }

    // A text with code in it, as the current gradio makes of `...`.
    function translateMarked(element) {
        const said = (node) => (node.nodeName === "CODE" ? `\`${node.textContent}\`` : node.nodeType === Node.TEXT_NODE ? node.data : "");
        const written = [...element.childNodes].map(said).join("");
        const { english, shown } = known(texts.get(element), written);
        texts.set(element, { english, shown });
        if (written !== shown) element.replaceChildren(...tuner.marked(shown));
    }

    function translateAttributes(element) {
        const kept = attributes.get(element) || {};
        attributes.set(element, kept);
        for (const name of ATTRIBUTES) {
            const now = element.getAttribute(name);
            if (!now) continue;
            kept[name] = known(kept[name], now);
            if (now !== kept[name].shown) element.setAttribute(name, kept[name].shown);
        }
    }

    // A drop-down shows its choice in an input: the screen gets the translation, while gradio, which reads `value`, finds its own word.
    function translateChoice(input) {
        const { get, set } = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value"), raw = () => get.call(input);
        const put = (kept) => { inputs.set(input, kept); if (raw() !== kept.shown) set.call(input, kept.shown); };
        if (!inputs.has(input)) {
            Object.defineProperty(input, "value", {
                configurable: true,
                get: () => (raw() === inputs.get(input).shown ? inputs.get(input).english : raw()),
                set: (value) => put(known(null, String(value ?? ""))),
            });
            put(known(null, raw()));
        } else if (raw() === inputs.get(input).shown) {
            put(known(inputs.get(input), raw()));
        } // else somebody is typing
    }

    function translate(root) {
        const element = root.nodeType === Node.TEXT_NODE ? root.parentElement : root;
        if (!language.ready || !element || !element.closest || element.closest(SKIPPED)) return;
        const walker = document.createTreeWalker(root, NodeFilter.SHOW_ELEMENT | NodeFilter.SHOW_TEXT, (node) => (
            node.nodeType === Node.ELEMENT_NODE && node.matches(SKIPPED) ? NodeFilter.FILTER_REJECT : NodeFilter.FILTER_ACCEPT));
        const nodes = [root], marked = new Set();
        while (walker.nextNode()) nodes.push(walker.currentNode);
        for (const node of nodes) {
            if (node.nodeType === Node.TEXT_NODE) {
                const parent = node.parentElement && node.parentElement.nodeName === "CODE" ? node.parentElement.parentElement : node.parentElement;
                if (!parent || parent.nodeName === "TEXTAREA") continue;
                if (texts.has(parent) || parent.querySelector(":scope > code")) marked.add(parent);
                else translateText(node);
            } else {
                translateAttributes(node);
                if (node.matches(CHOICES) && !node.closest(TYPED)) translateChoice(node);
            }
        }
        marked.forEach(translateMarked);
    }

    // The words of an element as the program has them, for the search.
    language.english = function (element) {
        const walker = document.createTreeWalker(element), said = [];
        while (walker.nextNode()) if (texts.has(walker.currentNode)) said.push(texts.get(walker.currentNode).english);
        return said.join(" ");
    };

    // What is put together piece by piece is told piece by piece: each of it is looked through once, from its outermost new part, and not at all if it is gone again.
    function translateNew(records) {
        const nodes = new Set(records.flatMap((record) => (record.type === "childList" ? [...record.addedNodes] : [record.target])));
        const within = (node) => { for (let outer = node.parentNode; outer; outer = outer.parentNode) if (nodes.has(outer)) return true; return false; };
        for (const node of nodes) if (node.isConnected && !within(node)) translate(node);
    }

    new MutationObserver(translateNew).observe(document.documentElement, { childList: true, subtree: true, characterData: true, attributes: true, attributeFilter: ATTRIBUTES });

    document.documentElement.classList.add("tuner-wordless");
    use(wanted());
})(window.tuner);
