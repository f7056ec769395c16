"""The shell: one outside thing per file. It touches the system and decides nothing."""
