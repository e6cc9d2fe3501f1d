"""An OpenAI-compatible server over one engine: `outrider serve`."""
