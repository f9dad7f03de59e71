import { Select } from '@mantine/core';

import { useDirectory } from './queries';

interface UserSelectProps {
  label: string;
  placeholder?: string;
  value: string | null;
  clearable?: boolean;
  onChange: (id: string | null) => void;
}

export function UserSelect({ label, placeholder = 'Everybody', value, clearable = true, onChange }: UserSelectProps) {
  const users = useDirectory();
  const known = users.map(({ id, email }) => ({ value: id, label: email }));
  // One that is beyond the first hundred, or gone.
  if (value !== null && !known.some((one) => one.value === value)) known.push({ value, label: value });
  return (
    <Select
      label={label}
      placeholder={placeholder}
      data={known}
      value={value}
      onChange={onChange}
      searchable
      clearable={clearable}
      allowDeselect={clearable}
      clearButtonProps={{ 'aria-label': 'Everybody' }}
      nothingFoundMessage="Nobody"
      w={{ base: '100%', xs: 260 }}
    />
  );
}
