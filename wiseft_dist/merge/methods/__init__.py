"""How models become theta_alpha. One small file a method, which states its source."""
