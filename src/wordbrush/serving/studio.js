() => {
    const press = id => {
        const button = document.getElementById(id);
        if (button && !button.disabled) button.click();
    };
    document.addEventListener("keydown", event => {
        if (event.key === "Escape") press("cancel");
    });
    document.addEventListener("paste", event => {
        const picture = [...event.clipboardData.files].find(file => file.type.startsWith("image/"));
        const chooser = document.querySelector("#drop input[type=file]");
        if (!picture || !chooser) return;
        const chosen = new DataTransfer();
        chosen.items.add(picture);
        chooser.files = chosen.files;
        chooser.dispatchEvent(new Event("change", { bubbles: true }));
    });
    const theme = document.getElementById("theme");
    theme.setAttribute("aria-label", "Light or dark");
    theme.addEventListener("click", () => document.body.classList.toggle("dark"));
    document.documentElement.lang = "en";
}
