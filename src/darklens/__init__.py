"""darklens: physics-informed classification of dark-matter substructure in strong-lens images."""

__version__ = "0.1.0"
