"""Training as several processes: the exchange of gradients, agreement between ranks, the time line of a step."""
