"""Answer whether a robust network transfers better to a task: one command from data to verdict."""
