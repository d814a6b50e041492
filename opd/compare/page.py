def render(comparison): return ""
