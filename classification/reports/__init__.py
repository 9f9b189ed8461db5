"""From results to statistics, exhibits, figures and pages."""
