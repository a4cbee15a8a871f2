"""What a tensor that leaves a site tells of the image it was made from: attacks, accounting, report and page."""
