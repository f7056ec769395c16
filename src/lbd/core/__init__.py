"""The pure core: no clock, no socket, no log, no file system. Everything that decides lives here."""
