"""The exercises of each chapter of the course (docs/course/), a module a chapter."""
