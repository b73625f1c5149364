"""What a run will reach, from its first tenth and from the law of earlier runs; and reference curves of recipes."""
