"""See STYLE: one room, one idea."""
