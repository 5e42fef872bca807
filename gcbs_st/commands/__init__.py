"""The commands: one module each, with `main(argv) -> int`."""
