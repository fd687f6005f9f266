"""The page: settings as widgets, buttons, and one root each for what javascript/ draws. The only place that knows gradio."""
