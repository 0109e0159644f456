"""Studies: one file for each figure, table or open question, with the runs it needs, its claims and its drawing."""
