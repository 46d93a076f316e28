"""The search: budgets, searchers (ask/tell), the controller loop, workers on Ray, the journal."""
