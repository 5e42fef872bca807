"""What planners are made of: no planner imports another one, so what two of them share is here."""
