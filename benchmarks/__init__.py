"""What each kernel costs against what people use today."""
