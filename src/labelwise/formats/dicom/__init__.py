"""DICOM: series as volumes (`image`), and labels as DICOM-SEG (`seg`) and RTSTRUCT (`rtstruct`). An extra."""
