"""What lowered graphs will take: tables, predictors, corrections."""
