"""The classes of DeepLense, with all names and numbers that its data sets use for them."""

CLASSES = ["no", "sphere", "vort"]
ALIASES = {
    "no": 0, "no_sub": 0, "nosub": 0, "no_substructure": 0,
    "sphere": 1, "cdm": 1, "subhalo": 1,
    "vort": 2, "vortex": 2, "axion": 2,
}  # fmt: skip


def label_of(name: str) -> int | None:
    """Return the number of the class with this name or number, or None if there is none."""
    text = name.strip().lower()
    if text.removesuffix(".0").isdecimal() and len(text) < 9:
        number = int(text.removesuffix(".0"))
        return number if number < len(CLASSES) else None
    return ALIASES.get(text)
