import {
  Alert,
  type CSSVariablesResolver,
  createTheme,
  Input,
  type MantineColorsTuple,
  Modal,
  NumberInput,
  PasswordInput,
  Paper,
  Select,
  Table,
  Textarea,
  TextInput,
  Tooltip,
} from '@mantine/core';

const clay: MantineColorsTuple = [
  '#fdf4ef', '#f8e5da', '#f0c8b3', '#e8a98a', '#e18e67', '#dd7d50', '#d2683a', '#b4512f', '#9c4526', '#7f361c',
];
const dark: MantineColorsTuple = [
  '#e9e7e3', '#c9c6c0', '#a8a49d', '#7c7872', '#514e4a', '#393734', '#2c2a28', '#211f1e', '#191817', '#121110',
];
const gray: MantineColorsTuple = [
  '#faf9f7', '#f3f1ed', '#e8e5df', '#dad6ce', '#c5c0b6', '#a39d92', '#7d776d', '#5c574f', '#3d3934', '#23211e',
];

export const theme = createTheme({
  colors: { clay, dark, gray },
  primaryColor: 'clay',
  primaryShade: { light: 7, dark: 7 },
  fontFamily: "'Inter Variable', system-ui, sans-serif",
  fontFamilyMonospace: "ui-monospace, 'SF Mono', 'Cascadia Code', 'DejaVu Sans Mono', monospace",
  headings: { fontWeight: '650' },
  defaultRadius: 'md',
  cursorType: 'pointer',
  components: {
    Alert: Alert.extend({ styles: { label: { color: 'var(--mantine-color-text)' } } }),
    InputWrapper: Input.Wrapper.extend({ styles: { label: { marginBottom: 4 } } }),
    Modal: Modal.extend({ defaultProps: { centered: true, radius: 'lg' }, styles: { title: { fontWeight: 650 } } }),
    Paper: Paper.extend({ defaultProps: { withBorder: true, radius: 'lg' } }),
    Table: Table.extend({ defaultProps: { verticalSpacing: 'sm', horizontalSpacing: 'md' } }),
    Tooltip: Tooltip.extend({ defaultProps: { withArrow: true, events: { hover: true, focus: true, touch: true } } }),
    Select: Select.extend({ defaultProps: { comboboxProps: { shadow: 'md' } } }),
    TextInput: TextInput.extend({ defaultProps: { autoComplete: 'off' } }),
    NumberInput: NumberInput.extend({ defaultProps: { thousandSeparator: ' ', hideControls: true } }),
    PasswordInput: PasswordInput.extend({ defaultProps: { visibilityToggleButtonProps: { 'aria-label': 'Show the password' } } }),
    Textarea: Textarea.extend({ defaultProps: { autosize: true, minRows: 2 } }),
  },
});

/** Where Mantine's own colours are too faint to be read by everybody (WCAG 2, AA). */
export const variables: CSSVariablesResolver = () => ({
  variables: {},
  light: {
    '--mantine-color-dimmed': '#69645b',
    '--mantine-color-placeholder': '#78726a',
    '--mantine-color-error': '#c02626',
    '--mantine-color-anchor': '#a04624',
    '--ground': '#f7f5f2',
  },
  dark: {
    '--mantine-color-dimmed': '#a8a49d',
    '--mantine-color-placeholder': '#928e87',
    '--mantine-color-error': '#ff8f8f',
    '--mantine-color-anchor': '#f0a582',
    '--mantine-color-body': '#1d1c1a',
    '--mantine-color-default-border': '#3a3734',
    '--ground': '#151413',
  },
});
