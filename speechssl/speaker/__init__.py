"""Who speaks: identification, verification by trials with EER and minDCF, and the splits for both."""
