"""Read untrusted files, write files all or nothing, and print without ever raising."""
