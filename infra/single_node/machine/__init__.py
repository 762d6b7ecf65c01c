"""The machine itself: its folder, processes, containers, router and metrics. Knows no Pulumi."""
