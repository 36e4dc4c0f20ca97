() => {
    const press = id => {
        const button = document.getElementById(id);
        if (button && !button.disabled) button.click();
    };
    document.addEventListener("keydown", event => {
        if (event.key === "Escape") press("cancel");
    });
    const theme = document.getElementById("theme");
    theme.setAttribute("aria-label", "Light or dark");
    theme.addEventListener("click", () => document.body.classList.toggle("dark"));
    document.documentElement.lang = "en";
}
