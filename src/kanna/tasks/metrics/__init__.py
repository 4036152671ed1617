"""From records to figures: metrics of text and of the user, means by groups, floors without a model."""
