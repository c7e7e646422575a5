"""One file per family: the model as a program over `Ops`, its parameters, plan and cost."""
