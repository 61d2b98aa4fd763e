"""`speechssl bench`: where the time of a training step goes, beside the machine's limit and other toolkits."""
