"""The exercises of the kernel chapters, 14 to 18 (docs/course/), a module a chapter."""
