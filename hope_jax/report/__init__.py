"""Pages and figures that training and evaluations share."""
