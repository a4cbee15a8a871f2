"""Files of many images: npz, idx, NIfTI, DICOM."""
