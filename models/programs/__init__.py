"""One family, one file: the model as a program over `Ops`, its parameters, plan and cost."""
