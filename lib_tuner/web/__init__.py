"""JSON and pictures for the page and for scripts. The only place that knows fastapi."""
